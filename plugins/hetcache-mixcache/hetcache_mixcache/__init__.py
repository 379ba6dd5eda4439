"""MixCache as a plugin of hetcache."""
