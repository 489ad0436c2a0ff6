terraform {
  required_version = ">= 1.10.0" # locks the state in its bucket, without a table

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 6.0"
    }
  }

  # Where the state is, each environment says: -backend-config=environments/<name>.s3.tfbackend
  backend "s3" {}
}

provider "aws" {
  region = var.region

  default_tags {
    tags = {
      Project     = "budget-hub"
      Environment = var.environment
    }
  }
}
