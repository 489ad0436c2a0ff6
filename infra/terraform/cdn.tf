# What everybody reads photos through. Its origin path is /public: nothing outside of that folder
# has an address, and the hub's CDN_BASE_URL needs no path.

data "aws_cloudfront_cache_policy" "optimized" {
  name = "Managed-CachingOptimized"
}

resource "aws_cloudfront_origin_access_control" "photos" {
  name                              = "${var.bucket_name}-${var.environment}"
  description                       = "Signs what the CDN asks of the bucket"
  origin_access_control_origin_type = "s3"
  signing_behavior                  = "always"
  signing_protocol                  = "sigv4"
}

# A photo is data: nothing of it may be run or guessed.
resource "aws_cloudfront_response_headers_policy" "photos" {
  name = "${var.bucket_name}-${var.environment}"

  security_headers_config {
    content_security_policy {
      content_security_policy = "default-src 'none'"
      override                = true
    }

    content_type_options {
      override = true
    }

    frame_options {
      frame_option = "DENY"
      override     = true
    }

    referrer_policy {
      referrer_policy = "no-referrer"
      override        = true
    }

    # For the CDN's own name, which has nothing below it.
    strict_transport_security {
      access_control_max_age_sec = 63072000
      include_subdomains         = true
      preload                    = true
      override                   = true
    }
  }
}

resource "aws_cloudfront_distribution" "photos" {
  #checkov:skip=CKV_AWS_68:Static files behind the CDN's own limits: there is nothing a firewall would protect.
  #checkov:skip=CKV2_AWS_47:No Java and no program at all is behind this distribution.
  #checkov:skip=CKV_AWS_86:Who looks at whose photo is not recorded.
  #checkov:skip=CKV_AWS_305:There is no page at the root, and a listing neither.
  #checkov:skip=CKV_AWS_310:One bucket, one origin; a lost region is answered in photos.tf.
  #checkov:skip=CKV_AWS_374:Users travel: a photo is seen everywhere.
  #checkov:skip=CKV_AWS_174:TLS 1.2 with a name of one's own; CloudFront's own name allows no choice.
  #checkov:skip=CKV2_AWS_42:The same: cdn_domain and cdn_certificate_arn set it.
  enabled         = true
  is_ipv6_enabled = true
  comment         = "Profile photos, ${var.environment}"
  aliases         = var.cdn_domain == null ? [] : [var.cdn_domain]
  price_class     = var.environment == "prod" ? "PriceClass_All" : "PriceClass_100"

  origin {
    origin_id                = "photos"
    domain_name              = aws_s3_bucket.photos.bucket_regional_domain_name
    origin_path              = "/public"
    origin_access_control_id = aws_cloudfront_origin_access_control.photos.id
  }

  default_cache_behavior {
    target_origin_id           = "photos"
    allowed_methods            = ["GET", "HEAD"]
    cached_methods             = ["GET", "HEAD"]
    viewer_protocol_policy     = "redirect-to-https"
    compress                   = false # photos are compressed already
    cache_policy_id            = data.aws_cloudfront_cache_policy.optimized.id
    response_headers_policy_id = aws_cloudfront_response_headers_policy.photos.id
  }

  # Without the right to list, S3 says 403 of what is not there.
  custom_error_response {
    error_code            = 403
    error_caching_min_ttl = 10
  }

  restrictions {
    geo_restriction {
      restriction_type = "none"
    }
  }

  viewer_certificate {
    cloudfront_default_certificate = var.cdn_domain == null
    acm_certificate_arn            = var.cdn_certificate_arn
    ssl_support_method             = var.cdn_domain == null ? null : "sni-only"
    minimum_protocol_version       = var.cdn_domain == null ? "TLSv1" : "TLSv1.2_2021"
  }
}
