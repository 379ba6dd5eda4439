"""CogVideoX as a plugin of hetcache."""
