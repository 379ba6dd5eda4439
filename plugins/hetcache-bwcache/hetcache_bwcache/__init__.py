"""BWCache as a plugin of hetcache."""
