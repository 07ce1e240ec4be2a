"""Train a recipe: deepspeed launch/train.py --recipe recipes/quickstart.yaml."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpt2_ds.config.deepspeed_release import check_deepspeed
from gpt2_ds.config.errors import exit_code_of
from gpt2_ds.config.run_plan import resolve_run
from gpt2_ds.hosts.hostfile import check_hostfile, ranks_of, read_hostfile
from gpt2_ds.hosts.launcher import adopt_launcher_variables, check_world_size, world_size
from gpt2_ds.hosts.node_environment import load_node_environment
from gpt2_ds.hosts.supervisor import supervise
from gpt2_ds.preflight.inputs import open_inputs
from gpt2_ds.train.start.arguments import parse, start_options
from gpt2_ds.train.start.dry_run import show_run


def main() -> int:
    args = parse(sys.argv[1:])
    load_node_environment()
    adopt_launcher_variables()
    check_deepspeed()
    check_hostfile()
    if not args.dry_run:  # which shows the run of any number of ranks
        check_world_size(args.expect_ranks)
    ranks = world_size() if args.expect_ranks is None else args.expect_ranks
    if args.hostfile:
        ranks = ranks_of(args.hostfile, read_hostfile(args.hostfile), args.expect_ranks)
    plan = resolve_run(
        args.recipe,
        world_size=ranks,
        template_file=args.template,
        overrides=args.set,
        run_dir=args.run_dir,
        max_steps=args.max_steps,
        twin=args.twin,
    )
    options = start_options(args, plan.derived.steps)
    if args.dry_run:
        return show_run(plan, args.hostfile, sys.argv)
    supervise(args.restarts)  # from here on in a process of its own, when there are restarts
    corpus = open_inputs(plan)

    from gpt2_ds.train.job import leaving  # torch and deepspeed: after the quick checks
    from gpt2_ds.train.run import replay_step, train

    with leaving(plan, log=args.replay is None) as job:
        if args.replay is None:
            job.exit_code = train(plan, corpus, options)
        else:
            job.exit_code = replay_step(plan, corpus, args.replay, strict=args.strict)


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
