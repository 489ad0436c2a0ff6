# The hub's settings, by their names.

output "S3_BUCKET" {
  description = "Where the hub keeps photos."
  value       = aws_s3_bucket.photos.id
}

output "S3_REGION" {
  description = "The bucket's region."
  value       = var.region
}

output "CDN_BASE_URL" {
  description = "Where photos are read."
  value       = "https://${coalesce(var.cdn_domain, aws_cloudfront_distribution.photos.domain_name)}"
}

output "cdn_domain_name" {
  description = "What a DNS record for cdn_domain points to."
  value       = aws_cloudfront_distribution.photos.domain_name
}

output "hub_policy_arn" {
  description = "The policy that the hub's user or role needs."
  value       = aws_iam_policy.hub.arn
}
