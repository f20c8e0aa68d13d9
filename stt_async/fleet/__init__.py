"""The commands of the operator: build, deploy, scale, check."""
