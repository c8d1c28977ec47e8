"""An OCR-D program as far as a deployment sees it, where OCR-D is not installed: `NAME worker --database URL --queue URL`.
Writes what it was started with to OCRD_NETWORK_LOGS_ROOT_DIR/NAME.PID.json, and consumes its queue: each Job is RUNNING while a file
`hold` lies there, and then a success without any work."""

import argparse
import json
import os
import pathlib
import sys
import time
import urllib.request

from amqp_consumer import AmqpConsumer
from mongo_rows import set_fields


def main():
    name = pathlib.Path(sys.argv[0]).name
    if sys.argv[1:2] == ["--dump-json"]:
        print(json.dumps({"executable": name, "description": "plays", "categories": ["Image preprocessing"],
                          "steps": ["preprocessing/optimization"], "input_file_grp_cardinality": 1, "output_file_grp_cardinality": 1, "parameters": {}}))
        return
    if sys.argv[1:2] != ["worker"]:
        sys.exit(2)
    options = argparse.ArgumentParser()
    options.add_argument("--database", required=True)
    options.add_argument("--queue", required=True)
    given = options.parse_args(sys.argv[2:])
    logs = pathlib.Path(os.environ["OCRD_NETWORK_LOGS_ROOT_DIR"])
    logs.mkdir(parents=True, exist_ok=True)
    consumer = AmqpConsumer(given.queue, name)
    (logs / f"{name}.{os.getpid()}.json").write_text(json.dumps({"database": given.database, "queue": given.queue, "environ": dict(os.environ), "cwd": os.getcwd()}))
    print(f"{name}: consuming", flush=True)
    for body, tag in consumer.deliveries():
        job = json.loads(body)
        print(f"{name}: job {job['job_id']}", flush=True)
        state = lambda word: set_fields(given.database, "DBProcessorJob", {"job_id": job["job_id"]}, {"state": word})
        state("RUNNING")
        (logs / f"{job['job_id']}.by").write_text(str(os.getpid()))
        while (logs / "hold").exists():
            time.sleep(0.02)
        state("SUCCESS")
        result = json.dumps({"job_id": job["job_id"], "state": "SUCCESS", "path_to_mets": job["path_to_mets"]}).encode()
        urllib.request.urlopen(urllib.request.Request(job["internal_callback_url"], result, {"Content-Type": "application/json"}), timeout=10).close()
        consumer.ack(tag)


if __name__ == "__main__":
    main()
