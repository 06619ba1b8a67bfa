import json, sys, time

for line in sys.stdin:
    asked = json.loads(line)
    answer = {"jsonrpc": "2.0", "id": asked["id"], "result": time.strftime("%H:%M")}
    print(json.dumps(answer), flush=True)
