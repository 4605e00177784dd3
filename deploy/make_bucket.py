"""Make a bucket where there is none. Finds the store and its keys in AWS's own variables.

python make_bucket.py NAME
"""

import sys

import boto3
from botocore.exceptions import ClientError


def main(name: str) -> None:
    store = boto3.client("s3")
    try:
        store.head_bucket(Bucket=name)
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("404", "NoSuchBucket"):
            raise
        store.create_bucket(Bucket=name)
    print(f"bucket {name} is there")


if __name__ == "__main__":
    main(sys.argv[1])
