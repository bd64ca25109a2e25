#!/bin/sh
# Generates hooklane/v1 in Python, with types for editors, into the folder named (default: gen beside this file).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
proto=${HOOKLANE_PROTO:-$here/../../../proto}
out=${1:-$here/gen}
mkdir -p "$out"
# google/rpc is not generated: googleapis-common-protos has it.
"${PYTHON:-python3}" -m grpc_tools.protoc --proto_path="$proto" \
    --python_out="$out" --pyi_out="$out" --grpc_python_out="$out" "$proto"/hooklane/v1/*.proto
