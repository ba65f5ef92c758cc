"""What every crash loop does: writers run until the process dies under them, from a seed that is printed."""
import argparse
import random
import signal
import subprocess
import sys
import threading
import time


IN_FLIGHT = "also: what was in flight when the process was killed has an event if it happened, and none if it did not"


def in_flight() -> bool:
    """Whether that is looked at: it holds where a change and its event are one commit."""
    return "--in-flight" in sys.argv


def arguments(description: str) -> tuple[int, int]:
    """How often to kill, and the seed of all chance."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--in-flight", action="store_true", help=IN_FLIGHT)
    args = parser.parse_args()
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}, {args.kills} kills", flush=True)
    return args.kills, seed


def kill_under_load(process: subprocess.Popen, runs: list, seconds: float) -> None:
    """Lets all of `runs` run for so long, and kills the process under them; each must end by itself then."""
    threads = [threading.Thread(target=run) for run in runs]
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for thread in threads:
        thread.join()
