#!/usr/bin/env bash
# Installs an unpacked release and starts the worker. The user data runs this script as root, in the release's folder,
# after it has written /etc/stt-async/worker.env. Safe to run again. Any failure ends the instance; its group starts a
# new one.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"
umask 022
trap '[ $? = 0 ] || ./end-instance.sh' EXIT

: "${MINIO_SECRET_PARAMETER:?path of the key of MinIO in the Parameter Store}"
: "${LOG_GROUP:?CloudWatch log group of the worker}"

home=/opt/stt-async
settings=/etc/stt-async

log() { printf 'boot: %s (%d s)\n' "$*" "$SECONDS"; }

# Amazon Linux 2023 locks its repositories to the version of the image: the same image gets the same packages.
install_packages() {
  dnf --assumeyes --quiet install python3.11 amazon-cloudwatch-agent logrotate
}

install_python_environment() {
  local made_from=$home/venv/.made-from
  if cmp --quiet requirements.txt "$made_from"; then return; fi
  python3.11 -m venv --clear "$home/venv"
  # --isolated ignores pip's configuration and environment variables on this machine.
  "$home/venv/bin/pip" --isolated install --quiet --disable-pip-version-check --no-cache-dir \
    --no-index --find-links wheels --require-hashes --requirement requirements.txt
  cp requirements.txt "$made_from"
}

install_configuration() {
  install -m 755 fetch-secrets.sh end-instance.sh "$home"
  install -m 644 units/*.service /etc/systemd/system
  install -D -m 644 logrotate.conf /etc/logrotate.d/stt-async
  printf 'MINIO_SECRET_PARAMETER=%s\n' "$MINIO_SECRET_PARAMETER" >"$settings/boot.env"
  sed "s|@LOG_GROUP@|$LOG_GROUP|" cloudwatch-agent.json >"$settings/cloudwatch-agent.json"
}

ship_logs() {
  # LogsDirectory= is too late: systemd opens the log file before it creates that folder.
  install -d -m 700 /var/log/stt-async
  systemctl enable --now stt-async-journal.service
  /opt/aws/amazon-cloudwatch-agent/bin/amazon-cloudwatch-agent-ctl \
    -a fetch-config -m ec2 -s -c "file:$settings/cloudwatch-agent.json"
}

install -d "$home" "$settings"
install_packages
log "packages installed"
install_configuration
systemctl daemon-reload
ship_logs
log "log shipping started"
install_python_environment
log "Python environment installed"
systemctl enable stt-async.service
# Returns when the worker is ready: preflight has passed and the launch hook is completed.
systemctl restart stt-async.service
log "worker ready"
