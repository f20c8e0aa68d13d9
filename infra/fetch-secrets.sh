#!/usr/bin/env bash
# Fetches MinIO's key from the Parameter Store into /run: in memory, readable by root alone. The worker gets it through
# LoadCredential=.
set -euo pipefail

for name in access-key secret-key; do
  aws ssm get-parameter --with-decryption --name "$MINIO_SECRET_PARAMETER/$name" \
    --query Parameter.Value --output text >"$RUNTIME_DIRECTORY/$name"
done
