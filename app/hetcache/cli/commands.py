"""The commands and their options. Each imports what it needs when it is called."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from hetcache.cli.compare import compare
from hetcache.cli.export import export
from hetcache.cli.plugins import check
from hetcache.cli.quality import evaluate, vbench
from hetcache.cli.report import report
from hetcache.cli.schedule import compile_schedule
from hetcache.editing.config import (
    CalibrateConfig,
    DemoConfig,
    EditConfig,
    assignments,
    make_calibrate_config,
    make_config,
    make_demo_config,
    option_help,
)
from hetcache.running.console import find_plugins, print_json

__all__ = ["app"]

EDIT: Final = option_help(EditConfig)
DEMO: Final = option_help(DemoConfig)
CALIBRATE: Final = option_help(CalibrateConfig)

TargetSpeedup = Annotated[float | None, typer.Option(help=EDIT["target_speedup"])]
FirstSteps = Annotated[str | None, typer.Option(metavar="N|SHARE", help=EDIT["first_steps"])]
LastSteps = Annotated[str | None, typer.Option(metavar="N|SHARE", help=EDIT["last_steps"])]
LongestReuse = Annotated[str | None, typer.Option(metavar="N|SHARE", help=EDIT["longest_reuse"])]
FullSteps = Annotated[str | None, typer.Option(help=EDIT["full_steps"])]
MaxCacheBytes = Annotated[str | None, typer.Option(metavar="SIZE", help=EDIT["max_cache_bytes"])]
CacheDtype = Annotated[str | None, typer.Option(help=EDIT["cache_dtype"])]
CacheDevice = Annotated[str | None, typer.Option(help=EDIT["cache_device"])]
Compile = Annotated[bool | None, typer.Option("--compile/--no-compile", help=EDIT["compile"])]

Options = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        metavar="NAME=VALUE",
        help="an argument of the model library's own call; repeatable",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="print JSON, and nothing else, on stdout")]

app = typer.Typer(
    name="hetcache",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
plugins_app = typer.Typer(help="The installed plugins.", rich_markup_mode=None)
app.add_typer(plugins_app, name="plugins")


@app.callback(invoke_without_command=True)
def hetcache(
    context: typer.Context,
    *,
    show_version: Annotated[
        bool, typer.Option("--version", help="print the version and leave", is_eager=True)
    ] = False,
) -> None:
    """Edit videos with diffusion transformers, faster: what changes too little is not computed."""
    if show_version:
        typer.echo(f"hetcache {version('hetcache')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@plugins_app.callback(invoke_without_command=True)
def plugins(context: typer.Context) -> None:
    """Show the installed plugins."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def edit(
    *,
    video: Annotated[str | None, typer.Option(help=EDIT["video"])] = None,
    mask: Annotated[str | None, typer.Option(help=EDIT["mask"])] = None,
    output: Annotated[str | None, typer.Option("--output", "-o", help=EDIT["output"])] = None,
    prompt: Annotated[str | None, typer.Option(help=EDIT["prompt"])] = None,
    negative_prompt: Annotated[str | None, typer.Option(help=EDIT["negative_prompt"])] = None,
    invert_mask: Annotated[
        bool | None, typer.Option("--invert-mask/--no-invert-mask", help=EDIT["invert_mask"])
    ] = None,
    backbone: Annotated[str | None, typer.Option(help=EDIT["backbone"])] = None,
    model: Annotated[str | None, typer.Option(help=EDIT["model"])] = None,
    policy: Annotated[str | None, typer.Option(help=EDIT["policy"])] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="a setting of the policy; repeatable"),
    ] = None,
    preset: Annotated[str | None, typer.Option(help=EDIT["preset"])] = None,
    options: Options = None,
    config: Annotated[
        str | None, typer.Option(help="a YAML file with any of these options; options win")
    ] = None,
    steps: Annotated[int | None, typer.Option(help=EDIT["steps"])] = None,
    seed: Annotated[int | None, typer.Option(help=EDIT["seed"])] = None,
    frames: Annotated[int | None, typer.Option(help=EDIT["frames"])] = None,
    height: Annotated[int | None, typer.Option(help=EDIT["height"])] = None,
    width: Annotated[int | None, typer.Option(help=EDIT["width"])] = None,
    cfg_scale: Annotated[float | None, typer.Option(help=EDIT["cfg_scale"])] = None,
    cfg_merge: Annotated[
        bool | None, typer.Option("--cfg-merge/--no-cfg-merge", help=EDIT["cfg_merge"])
    ] = None,
    device: Annotated[str | None, typer.Option(help=EDIT["device"])] = None,
    dtype: Annotated[str | None, typer.Option(help=EDIT["dtype"])] = None,
    target_speedup: TargetSpeedup = None,
    first_steps: FirstSteps = None,
    last_steps: LastSteps = None,
    longest_reuse: LongestReuse = None,
    full_steps: FullSteps = None,
    max_cache_bytes: MaxCacheBytes = None,
    cache_dtype: CacheDtype = None,
    cache_device: CacheDevice = None,
    compile: Compile = None,  # noqa: A002  # the option's name
    composite: Annotated[
        bool | None, typer.Option("--composite/--no-composite", help=EDIT["composite"])
    ] = None,
    compare: Annotated[
        bool | None, typer.Option("--compare/--no-compare", help=EDIT["compare"])
    ] = None,
    trace: Annotated[str | None, typer.Option(help=EDIT["trace"])] = None,
    json: Annotated[bool | None, typer.Option("--json/--no-json", help=EDIT["json"])] = None,
) -> None:
    """Edit the masked part of a video."""
    given = {name: value for name, value in locals().items() if value is not None}
    given.pop("config", None)
    for name, option in (("settings", "--set"), ("options", "--option")):
        if name in given:
            given[name] = assignments(given[name], option=option)
    asked = make_config(given, config)

    from hetcache.editing.edit import edit as run_edit
    from hetcache.editing.report import print_report

    report = run_edit(asked, find_plugins())
    if asked.json:
        print_json(report.to_dict())
    else:
        print_report(report)


@app.command()
def demo(
    *,
    output: Annotated[str | None, typer.Option("--output", "-o", help=DEMO["output"])] = None,
    backbone: Annotated[str | None, typer.Option(help=DEMO["backbone"])] = None,
    model: Annotated[str | None, typer.Option(help=DEMO["model"])] = None,
    policy: Annotated[str | None, typer.Option(help=DEMO["policy"])] = None,
    steps: Annotated[int | None, typer.Option(help=DEMO["steps"])] = None,
    seed: Annotated[int | None, typer.Option(help=DEMO["seed"])] = None,
    device: Annotated[str | None, typer.Option(help=DEMO["device"])] = None,
    dtype: Annotated[str | None, typer.Option(help=DEMO["dtype"])] = None,
    target_speedup: TargetSpeedup = None,
    first_steps: FirstSteps = None,
    last_steps: LastSteps = None,
    longest_reuse: LongestReuse = None,
    full_steps: FullSteps = None,
    max_cache_bytes: MaxCacheBytes = None,
    cache_dtype: CacheDtype = None,
    cache_device: CacheDevice = None,
    compile: Compile = None,  # noqa: A002  # the option's name
    json: Json = False,
) -> None:
    """Edit an embedded clip without and with caching, and show both side by side."""
    given: dict[str, Any] = {name: value for name, value in locals().items() if value is not None}
    del given["json"]
    asked = make_demo_config(given)

    from hetcache.editing.demo import demo as run_demo
    from hetcache.editing.report import print_report

    report = run_demo(asked, find_plugins())
    if json:
        print_json(report.to_dict())
    else:
        print_report(report)


@app.command()
def calibrate(
    *,
    policy: Annotated[str | None, typer.Option(help=CALIBRATE["policy"])] = None,
    output: Annotated[str | None, typer.Option("--output", "-o", help=CALIBRATE["output"])] = None,
    backbone: Annotated[str | None, typer.Option(help=CALIBRATE["backbone"])] = None,
    model: Annotated[str | None, typer.Option(help=CALIBRATE["model"])] = None,
    video: Annotated[list[str] | None, typer.Option(help=CALIBRATE["video"])] = None,
    mask: Annotated[list[str] | None, typer.Option(help=CALIBRATE["mask"])] = None,
    prompt: Annotated[str | None, typer.Option(help=CALIBRATE["prompt"])] = None,
    clips: Annotated[int | None, typer.Option(help=CALIBRATE["clips"])] = None,
    steps: Annotated[int | None, typer.Option(help=CALIBRATE["steps"])] = None,
    seed: Annotated[int | None, typer.Option(help=CALIBRATE["seed"])] = None,
    frames: Annotated[int | None, typer.Option(help=CALIBRATE["frames"])] = None,
    height: Annotated[int | None, typer.Option(help=CALIBRATE["height"])] = None,
    width: Annotated[int | None, typer.Option(help=CALIBRATE["width"])] = None,
    cfg_scale: Annotated[float | None, typer.Option(help=CALIBRATE["cfg_scale"])] = None,
    options: Options = None,
    device: Annotated[str | None, typer.Option(help=CALIBRATE["device"])] = None,
    dtype: Annotated[str | None, typer.Option(help=CALIBRATE["dtype"])] = None,
    json: Json = False,
) -> None:
    """Measure what a policy needs to know of a model, on uncached runs, and write it to a file."""
    given: dict[str, Any] = {
        name: value for name, value in locals().items() if value not in (None, [])
    }
    del given["json"]
    if "options" in given:
        given["options"] = assignments(given["options"], option="--option")
    asked = make_calibrate_config(given)

    from hetcache.editing.calibrate import calibrate as run_calibration
    from hetcache.editing.calibrate import print_calibration

    made = run_calibration(asked, find_plugins())
    if json:
        print_json(made.to_dict())
    else:
        print_calibration(made, asked.output)


app.command()(export)
app.command()(compile_schedule)
app.command()(compare)
app.command()(report)
app.command()(evaluate)
app.command()(vbench)


plugins_app.command()(check)


@plugins_app.command("list")
def list_plugins(
    *,
    json: Json = False,
    hook: Annotated[
        str | None, typer.Option(help="only the plugins that implement this hook")
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="what there is of one kind instead, such as selector")
    ] = None,
) -> None:
    """List the installed plugins, what they provide, and what is wrong with them."""
    from hetcache.plugins.view import (
        plugins_as_json,
        plugins_table,
        provided_as_json,
        provided_table,
    )
    from hetcache_core.plugins.kinds import kind_of

    registry = find_plugins(quietly=True)
    if kind is not None:
        listed = kind_of(kind)
        if json:
            print_json(provided_as_json(registry, listed))
        else:
            Console().print(provided_table(registry, listed))
    elif json:
        print_json(plugins_as_json(registry, hook))
    else:
        Console().print(plugins_table(registry, hook))


@app.command()
def policies(
    *,
    json: Json = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="print the table of the documentation")
    ] = False,
) -> None:
    """List the caching policies with their settings and presets."""
    if markdown:
        from hetcache.cli.table import policies_as_markdown

        typer.echo(policies_as_markdown(find_plugins()))
        return

    from hetcache.plugins.listing import policies_as_json, print_policies

    if json:
        print_json(policies_as_json(find_plugins()))
    else:
        print_policies(find_plugins())


@app.command()
def backbones(*, json: Json = False) -> None:
    """List the models, what they can carry, and the sizes that they take."""
    from hetcache.plugins.listing import backbones_as_json, print_backbones

    if json:
        print_json(backbones_as_json(find_plugins()))
    else:
        print_backbones(find_plugins())


@app.command()
def doctor(*, json: Json = False) -> None:
    """Show what is installed and what is missing."""
    from hetcache.plugins.doctor import examine, print_findings

    found = examine(find_plugins(quietly=True))
    if json:
        print_json(found)
    else:
        print_findings(found)
    if found["problems"]:
        raise typer.Exit(1)
