#!/usr/bin/env bash
# MinIO's key from the Parameter Store into /run, which is memory and root's alone. The worker gets it by LoadCredential=.
set -euo pipefail

for name in access-key secret-key; do
  aws ssm get-parameter --with-decryption --name "$MINIO_SECRET_PARAMETER/$name" \
    --query Parameter.Value --output text >"$RUNTIME_DIRECTORY/$name"
done
