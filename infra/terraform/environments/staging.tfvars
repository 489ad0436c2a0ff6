environment = "staging"
region      = "eu-central-1"
bucket_name = "budget-hub-photos-staging"
