"""Run code cells in a fresh Jupyter kernel of this Python: JSON [[id, source], ...] in, JSON of the first
failure (or null) out.

python run_in_kernel.py [OPTION_OF_THE_KERNEL ...] < cells.json
It runs where only ipykernel is installed, so it imports nothing else.
"""

import json, sys
from jupyter_client.manager import start_new_kernel


def main():
    cells, printed, failure = json.load(sys.stdin), [], None
    manager, client = start_new_kernel(extra_arguments=sys.argv[1:])

    def hook(message):
        if message['msg_type'] == 'stream':
            printed.append(message['content']['text'])

    try:
        for name, source in cells:
            reply = client.execute_interactive(source, output_hook=hook, allow_stdin=False)['content']
            if reply['status'] != 'ok':
                failure = dict(
                    cell=name,
                    source=source,
                    traceback='\n'.join(reply.get('traceback', [])),
                    printed=''.join(printed)[-3000:],
                )
                break
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    print(json.dumps(failure))


if __name__ == '__main__':
    main()
