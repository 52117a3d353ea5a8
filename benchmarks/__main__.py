"""Run every benchmark and print its tables."""

from benchmarks import attack_speed, step_time

if __name__ == "__main__":
    step_time.main()
    attack_speed.main()
