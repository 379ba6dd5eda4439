"""hetcache as nodes of ComfyUI, and ComfyUI's models as backbones of hetcache."""
