"""Run every benchmark and print its table."""

from benchmarks import step_time

if __name__ == "__main__":
    step_time.main()
