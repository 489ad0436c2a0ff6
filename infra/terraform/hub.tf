# What the hub may do: no more than storage/objects/s3.py does. There is no key here, as it would
# stand in the state: infra/README.md says how the hub gets its credentials.

data "aws_iam_policy_document" "hub" {
  statement {
    sid       = "SignAndCheckUploads"
    actions   = ["s3:PutObject", "s3:GetObject"]
    resources = ["${aws_s3_bucket.photos.arn}/temp/*"]
  }

  statement {
    sid       = "PublishAndDelete"
    actions   = ["s3:PutObject", "s3:DeleteObject"]
    resources = ["${aws_s3_bucket.photos.arn}/public/*"]
  }

  # Without it S3 answers 403 and not 404 to what is not there, and the hub could not tell an upload
  # that never came from a bucket that is badly set up. It is also what the health check asks for.
  statement {
    sid       = "TellMissingFromForbidden"
    actions   = ["s3:ListBucket"]
    resources = [aws_s3_bucket.photos.arn]
  }
}

resource "aws_iam_policy" "hub" {
  name        = "budget-hub-photos-${var.environment}"
  description = "What Budget Hub may do in its bucket of photos"
  policy      = data.aws_iam_policy_document.hub.json
}

resource "aws_iam_role_policy_attachment" "hub" {
  count      = var.hub_role_name == null ? 0 : 1
  role       = var.hub_role_name
  policy_arn = aws_iam_policy.hub.arn
}
