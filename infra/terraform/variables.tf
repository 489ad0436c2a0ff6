variable "environment" {
  description = "Which one this is; part of every name, so that they can share an account."
  type        = string

  validation {
    condition     = contains(["dev", "staging", "prod"], var.environment)
    error_message = "One of dev, staging, prod."
  }
}

variable "region" {
  description = "Where the bucket is: near the hub, which copies photos."
  type        = string
}

variable "bucket_name" {
  description = "Of the photos. Names of buckets are unique in all the world."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$", var.bucket_name))
    error_message = "3 to 63 lower-case letters, digits and hyphens; a dot would break TLS."
  }
}

variable "web_origins" {
  description = "Web pages that may upload from a browser, as in the hub's ORIGINS. Phones need none."
  type        = list(string)
  default     = []
}

variable "cdn_domain" {
  description = "A name of one's own for the CDN; null: the one CloudFront gives."
  type        = string
  default     = null
}

variable "cdn_certificate_arn" {
  description = "The certificate for cdn_domain, in us-east-1, as CloudFront wants it."
  type        = string
  default     = null

  validation {
    condition     = (var.cdn_domain == null) == (var.cdn_certificate_arn == null)
    error_message = "cdn_domain and cdn_certificate_arn go together."
  }
}

variable "hub_role_name" {
  description = "The role the hub runs as, where it runs on AWS; null: attach the policy by hand."
  type        = string
  default     = null
}
