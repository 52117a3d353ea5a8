"""Run every benchmark and print its tables."""

from benchmarks import attack_speed, resume, sharing, step_time, store_overhead

if __name__ == "__main__":
    step_time.main()
    attack_speed.main()
    store_overhead.main()
    resume.main()
    sharing.main()
