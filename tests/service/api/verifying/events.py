"""Reads captured requests as CloudEvents with the CloudEvents project's own library, which checks what it reads.

A request a line comes in: {"headers", "body" (base64)}; what was read goes out, a line for each: {"attributes", "data",
"data_base64"}, the last one where the data is bytes.
"""

import base64
import json
import sys

from cloudevents.core.bindings.http import HTTPMessage, from_http_event

for line in sys.stdin:
    request = json.loads(line)
    event = from_http_event(HTTPMessage(request["headers"], base64.b64decode(request["body"])))
    read = {"attributes": {name: str(value) for name, value in event.get_attributes().items()}}
    read["attributes"]["time"] = event.get_time().isoformat()
    data = event.get_data()
    if isinstance(data, (bytes, bytearray)):
        read["data_base64"] = base64.b64encode(data).decode()
    else:
        read["data"] = data
    print(json.dumps(read))
