"""GMSD as a metric of hetcache."""
