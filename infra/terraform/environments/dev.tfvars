environment = "dev"
region      = "eu-central-1"
bucket_name = "budget-hub-photos-dev"
