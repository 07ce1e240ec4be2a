"""Preflight checks of the machines: python launch/preflight.py --hostfile FILE."""

import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpt2_ds.config.deepspeed_release import check_deepspeed
from gpt2_ds.config.errors import EXIT_DONE, exit_code_of
from gpt2_ds.config.run_plan import resolve_run
from gpt2_ds.hosts.hostfile import check_hostfile
from gpt2_ds.hosts.launcher import adopt_launcher_variables, check_world_size, rank, world_size
from gpt2_ds.hosts.node_commands import without_own_options
from gpt2_ds.hosts.node_environment import load_node_environment
from gpt2_ds.preflight.arguments import parse
from gpt2_ds.preflight.before_ssh import check_hosts


def main() -> int:
    args = parse(sys.argv[1:])
    load_node_environment()
    adopt_launcher_variables()
    check_deepspeed()
    check_hostfile()
    if args.hostfile is not None:
        return check_hosts(args)
    check_world_size(args.expect_ranks)
    if args.dry_run and args.numerics:
        return _show_command()
    if args.numerics:
        from gpt2_ds.preflight import numerics

        numerics.check_and_leave()
    plan = resolve_run(
        args.recipe,
        world_size=world_size(),
        template_file=args.template,
        overrides=args.set,
        run_dir=args.run_dir,
    )
    if args.dry_run:
        return _show_command()

    from gpt2_ds.preflight.every_rank import check_and_leave

    check_and_leave(plan)


def _show_command() -> int:
    if rank() == 0:
        print(shlex.join([sys.executable, *without_own_options(sys.argv)]))
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
