"""The commands that come with hetcache; one module a command, loaded when it is called."""

from __future__ import annotations

from typing import Final

from hetcache_core import Registration

__all__ = ["COMMANDS"]

COMMANDS: Final = [
    Registration(name=name, target=f"hetcache.cli.commands.{target}", summary=summary)
    for name, target, summary in (
        (
            "backbones",
            "backbones:BackbonesCommand",
            "List the models, what they can carry, and the sizes that they take.",
        ),
        (
            "calibrate",
            "calibrate:CalibrateCommand",
            "Measure what a policy needs to know of a model, on reference runs, and write it to a file.",
        ),
        (
            "compare",
            "compare:CompareCommand",
            "Run policies, backbones, clips and seeds against each other; a row for every run.",
        ),
        (
            "compile-schedule",
            "compile_schedule:CompileScheduleCommand",
            "Make a schedule of a recorded run, which the policy replay follows without deciding.",
        ),
        (
            "demo",
            "demo:DemoCommand",
            "Edit an embedded clip without and with caching, and show both side by side.",
        ),
        (
            "describe",
            "describe:DescribeCommand",
            "Write a first description of a model's class, for a model set of your own.",
        ),
        ("doctor", "doctor:DoctorCommand", "Show what is installed and what is missing."),
        ("edit", "edit:EditCommand", "Edit the masked part of a video."),
        (
            "recommend",
            "recommend:RecommendCommand",
            "Say which model and policy to take for an edit, and why.",
        ),
        (
            "evaluate",
            "evaluate:EvaluateCommand",
            "Hold videos against a ground truth: PSNR, SSIM, LPIPS, flicker, VFID and CLIP score.",
        ),
        (
            "explain",
            "explain:ExplainCommand",
            "Say how the steps of a recorded run came to be what they were, or where two part.",
        ),
        (
            "export",
            "export:ExportCommand",
            "Write a model as ONNX graphs of the parts that caching runs or leaves out.",
        ),
        (
            "plugins-check",
            "plugins:CheckCommand",
            "Run the contract kit on the policies, backbones and clip sets of a distribution.",
        ),
        (
            "plugins-list",
            "plugins:ListCommand",
            "List the installed plugins, what they provide, and what is wrong with them.",
        ),
        (
            "policies",
            "policies:PoliciesCommand",
            "List the caching policies with their settings and presets.",
        ),
        (
            "preview",
            "preview:PreviewCommand",
            "Show mask, margin and context of an edit as the tokens of a model, without the model.",
        ),
        (
            "report",
            "report:ReportCommand",
            "Write a comparison as one HTML page: tables, plots, timelines, and the videos in step.",
        ),
        ("vbench", "vbench:VbenchCommand", "Hand a folder of videos to an installed VBench."),
    )
]
