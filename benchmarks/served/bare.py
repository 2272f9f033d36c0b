"""`python -m benchmarks.served.bare`: ONNX Runtime in a loop, with nothing around it."""

import json
import os
import sys
import time

from benchmarks.served.graphs import all_graphs
from workers.ml.infer.sessions import open_session


def main() -> None:
    graphs = all_graphs()
    sessions = {
        name: open_session(one.file, threads=1, gpu=False, log_severity=4)
        for name, one in graphs.items()
    }
    print(json.dumps(sorted(sessions)), flush=True)
    for line in sys.stdin:
        plan = json.loads(line)
        session, row = sessions[plan["model"]], dict(graphs[plan["model"]].row)
        answer = session.run(None, row)[0]
        done = 0
        before, began = _cpu(), time.perf_counter()
        end = began + plan["seconds"]
        while time.perf_counter() < end:
            session.run(None, row)
            done += 1
        spent, cpu = time.perf_counter() - began, _cpu() - before
        said = {
            "done": done,
            "bad": 0,
            "rate": done / spent,
            "cpu_us": cpu / done * 1e6,
            "p50_ms": spent / done * 1e3,
            "answer": [float(one) for one in answer.ravel()],
        }
        print(json.dumps(said), flush=True)


def _cpu() -> float:
    times = os.times()
    return times.user + times.system


if __name__ == "__main__":
    main()
