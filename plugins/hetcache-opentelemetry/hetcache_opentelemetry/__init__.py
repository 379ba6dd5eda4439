"""OpenTelemetry for hetcache."""
