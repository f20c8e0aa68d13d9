"""The CloudFormation template, resolved without AWS."""
