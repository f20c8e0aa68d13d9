#!/usr/bin/env bash
# Powers this instance off. Its launch template then terminates it, and its group starts a new one. Without `set -e`, so
# that the script always reaches its last line.

imds=${AWS_EC2_METADATA_SERVICE_ENDPOINT:-http://169.254.169.254}/latest
if [ -r /etc/stt-async/worker.env ]; then
  set -a
  # shellcheck source=/dev/null
  . /etc/stt-async/worker.env
  set +a
fi

# While the instance boots, the group waits up to ten minutes for the launch hook: ABANDON ends the wait. Later the call
# fails, and the group detects by itself that the instance has ended.
abandon_launch() {
  local token instance
  token=$(curl --silent --fail --max-time 2 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' "$imds/api/token") &&
    instance=$(curl --silent --fail --max-time 2 -H "X-aws-ec2-metadata-token: $token" "$imds/meta-data/instance-id") &&
    timeout 20 aws autoscaling complete-lifecycle-action --lifecycle-action-result ABANDON --instance-id "$instance" \
      --auto-scaling-group-name "$STT_AUTOSCALING_GROUP" --lifecycle-hook-name "$STT_LAUNCH_HOOK"
}

echo "end-instance: powering off"
abandon_launch || echo "end-instance: no launch hook to abandon"
# The CloudWatch agent sends every 5 s: wait until it has sent the last lines.
sleep 6
systemctl poweroff
