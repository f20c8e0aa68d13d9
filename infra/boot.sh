#!/usr/bin/env bash
# From an unpacked release to a worker at work. The user data runs it as root, in the release's folder, once
# /etc/stt-async/worker.env is written. May be run again. What fails ends the instance: its group starts another.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"
umask 022
trap '[ $? = 0 ] || ./end-instance.sh' EXIT

: "${MINIO_SECRET_PARAMETER:?path of the key of MinIO in the Parameter Store}"
: "${LOG_GROUP:?CloudWatch log group of the worker}"

home=/opt/stt-async
settings=/etc/stt-async

say() { printf 'boot: %s (%d s)\n' "$*" "$SECONDS"; }

# The repositories of Amazon Linux 2023 belong to the version of the image: the same image gets the same packages.
packages() {
  dnf --assumeyes --quiet install python3.11 amazon-cloudwatch-agent logrotate
}

python_environment() {
  local made=$home/venv/.made-from
  if cmp --quiet requirements.txt "$made"; then return; fi
  python3.11 -m venv --clear "$home/venv"
  # --isolated: no setting of this machine can name an index.
  "$home/venv/bin/pip" --isolated install --quiet --disable-pip-version-check --no-cache-dir \
    --no-index --find-links wheels --require-hashes --requirement requirements.txt
  cp requirements.txt "$made"
}

configuration() {
  install -m 755 fetch-secrets.sh end-instance.sh "$home"
  install -m 644 units/*.service /etc/systemd/system
  install -D -m 644 logrotate.conf /etc/logrotate.d/stt-async
  printf 'MINIO_SECRET_PARAMETER=%s\n' "$MINIO_SECRET_PARAMETER" >"$settings/boot.env"
  sed "s|@LOG_GROUP@|$LOG_GROUP|" cloudwatch-agent.json >"$settings/cloudwatch-agent.json"
}

logs() {
  # Not LogsDirectory=: systemd opens the file before it would make its folder.
  install -d -m 700 /var/log/stt-async
  systemctl enable --now stt-async-journal.service
  /opt/aws/amazon-cloudwatch-agent/bin/amazon-cloudwatch-agent-ctl \
    -a fetch-config -m ec2 -s -c "file:$settings/cloudwatch-agent.json"
}

install -d "$home" "$settings"
packages
say "has its packages"
configuration
systemctl daemon-reload
logs
say "ships its logs"
python_environment
say "has its Python environment"
systemctl enable stt-async.service
# Returns when the worker is ready: its preflight has passed, the launch hook is completed.
systemctl restart stt-async.service
say "is at work"
