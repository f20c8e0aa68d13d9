#!/usr/bin/env bash
# Ends this instance for sure: it powers off, and its launch template terminates what powers off. Its group sees that it
# is gone and starts another. No `set -e` and the like: nothing may keep it from its last line.

imds=${AWS_EC2_METADATA_SERVICE_ENDPOINT:-http://169.254.169.254}/latest
if [ -r /etc/stt-async/worker.env ]; then
  set -a
  # shellcheck source=/dev/null
  . /etc/stt-async/worker.env
  set +a
fi

# While it joins, its group waits for the launch hook: this saves up to ten minutes. Later there is no such hook to
# complete, and the group looks at the instance itself.
abandon_launch() {
  local token instance
  token=$(curl --silent --fail --max-time 2 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' "$imds/api/token") &&
    instance=$(curl --silent --fail --max-time 2 -H "X-aws-ec2-metadata-token: $token" "$imds/meta-data/instance-id") &&
    timeout 20 aws autoscaling complete-lifecycle-action --lifecycle-action-result ABANDON --instance-id "$instance" \
      --auto-scaling-group-name "$STT_AUTOSCALING_GROUP" --lifecycle-hook-name "$STT_LAUNCH_HOOK"
}

echo "end-instance: powering off"
abandon_launch || echo "end-instance: no launch to abandon"
# The agent sends what it has every 5 s: the last words, above all, should arrive.
sleep 6
systemctl poweroff
