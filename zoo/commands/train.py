"""`zoo train`."""

from zoo.commands.machine import on_machine, option, refuse_unnamed


def train(args: list[str]) -> int:
    """`zoo train [RECIPE] [options]`."""
    import tyro

    from train import recipes
    from train.config import Run

    if args[:1] in (["-h"], ["--help"]):
        found = recipes.recipes()
        width = max(map(len, found))
        for name, recipe in sorted(found.items()):
            print(f"{name:{width}}  {(recipe.__doc__ or '').strip().splitlines()[0]}")
        print("\nzoo train RECIPE --help lists the options of a recipe.")
        return 0
    name = args.pop(0) if args and not args[0].startswith("-") else recipes.DEFAULT
    default = recipes.begun(name, option(args, "--init"))
    run = tyro.cli(Run[type(default.model)], default=default, prog=f"zoo train {name}", args=args)
    refuse_unnamed(run, args)
    if (code := on_machine(run.machine, ["train", name, *args])) is not None:
        return code
    from eval import report, samples, scores
    from train import loop

    return loop.run(run, evaluate=scores.scorer, sample=samples.of_run, on_end=report.write)
