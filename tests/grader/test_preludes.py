"""A cell does in grading what it does in Jupyter: what people write above their answers, in both, side by side."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest
from grading_course import sandbox_or_skip

KERNEL_SECONDS = 120.0  # a hang guard
PROBE = "\nimport sys, json; print('PROBE', json.dumps(answer(20)))"
# Above `def answer`, in one cell with it.
PRELUDES = {
    "nothing": "",
    "matplotlib inline": "%matplotlib inline",
    "matplotlib inline and a picture": "%matplotlib inline\nimport matplotlib.pyplot as plt\n"
    "plt.plot([1, 2]); plt.show()",
    "matplotlib without a name": "%matplotlib",
    "matplotlib agg": "%matplotlib agg",
    "matplotlib list": "%matplotlib --list",
    "matplotlib notebook, an old one": "%matplotlib notebook",
    "matplotlib of no such name": "%matplotlib nowhere",
    "matplotlib by call": "get_ipython().run_line_magic('matplotlib', 'inline')",
    "matplotlib by an old call": "get_ipython().magic('matplotlib inline')",
    "pylab": "%pylab inline",
    "pylab without names": "%pylab inline --no-import-all",
    "retina": "%config InlineBackend.figure_format = 'retina'",
    "figure formats": "from matplotlib_inline.backend_inline import set_matplotlib_formats\n"
    "set_matplotlib_formats('svg')",
    "a style": "import matplotlib.pyplot as plt\nplt.style.use('ggplot')",
    "a backend by hand": "import matplotlib\nmatplotlib.use('Agg')",
    "interactive plots on": "import matplotlib.pyplot as plt\nplt.ion()",
    "autoreload": "%load_ext autoreload\n%autoreload 2",
    "an extension that is not there": "%load_ext no_such_extension",
    "a magic that is not there": "%no_such_magic",
    "gui": "%gui",
    "gui asyncio": "%gui asyncio",
    "warnings off": "import warnings\nwarnings.filterwarnings('ignore')",
    "logging": "import logging\nlogging.basicConfig(level=logging.INFO)\nlogging.info('x')",
    "logging to the output": "import logging, sys\nlogging.basicConfig(stream=sys.stdout, force=True)\n"
    "logging.error('x')",
    "a faulthandler": "import faulthandler\nfaulthandler.enable()",
    "the output's number": "import sys\nassert isinstance(sys.stdout.fileno(), int)",
    "the output's coding": "import sys\nassert sys.stdout.encoding == 'UTF-8'",
    "the output flushed": "import sys\nprint('x', file=sys.stderr, flush=True)\nsys.stdout.flush()",
    "the output's buffer": "import sys\nsys.stdout.buffer.write(b'x')",
    "line buffering": "import sys\nsys.stdout.reconfigure(line_buffering=True)",
    "the kernel": "assert get_ipython().kernel.shell is get_ipython()",
    "the kernel's comms": "assert get_ipython().kernel.comm_manager is not None",
    "the kernel's session": "assert get_ipython().kernel.session.session",
    "the kernel's language": "assert get_ipython().kernel.language_info['name'] == 'python'",
    "is this a notebook": "assert get_ipython().__class__.__name__.endswith('Shell')\n"
    "assert hasattr(get_ipython(), 'kernel')",
    "is this ipykernel": "import sys\nassert 'ipykernel' in sys.modules",
    "a running loop": "import asyncio\nassert asyncio.get_running_loop().is_running()",
    "await": "import asyncio\nawait asyncio.sleep(0.001)",
    "a task": "import asyncio\ntask = asyncio.create_task(asyncio.sleep(0))\nawait task",
    "a task that is not awaited": "import asyncio\ntask = asyncio.get_event_loop().create_task(asyncio.sleep(0))",
    "async for": "async def three():\n    for i in range(3):\n        yield i\n"
    "assert [i async for i in three()] == [0, 1, 2]",
    "async with": "import asyncio\nasync with asyncio.Lock():\n    pass",
    "asyncio.run, which Jupyter refuses": "import asyncio\nasync def one():\n    return 1\nasyncio.run(one())",
    "run_until_complete": "import asyncio\nasync def one():\n    return 1\n"
    "asyncio.get_event_loop().run_until_complete(one())",
    "a thread": "import threading\nt = threading.Thread(target=print)\nt.start(); t.join()",
    "a thread pool": "from concurrent.futures import ThreadPoolExecutor\n"
    "with ThreadPoolExecutor(2) as pool:\n    assert list(pool.map(abs, [-1])) == [1]",
    "time": "%time sum(range(9))",
    "timeit": "%timeit -n1 -r1 sum(range(9))",
    "a bang": "!echo hello",
    "a bang into a name": "said = !echo hello\nassert said == ['hello']",
    "a bang that fails": "!false",
    "pip's version": "%pip --version",
    "env": "%env COURSE=lora\nimport os\nassert os.environ['COURSE'] == 'lora'",
    "set_env": "%set_env COURSE=lora",
    "cd": "%cd -q /tmp",
    "pwd": "%pwd",
    "ls": "%ls /",
    "who": "%who",
    "reset of one name": "answer = object()\n%xdel answer",
    "reset": "%reset -f",
    "precision": "%precision 3",
    "xmode": "%xmode Verbose",
    "colors": "%colors nocolor",
    "automagic off": "%automagic off",
    "a question mark": "len?",
    "two question marks": "import json\njson.dumps??",
    "history": "%history -n",
    "an alias": "%alias say echo\n%say hello",
    "a config of the shell": "%config IPCompleter.greedy = True",
    "all values shown": "from IPython.core.interactiveshell import InteractiveShell\n"
    "InteractiveShell.ast_node_interactivity = 'all'\n1\n2",
    "the instance": "from IPython.core.interactiveshell import InteractiveShell\n"
    "assert InteractiveShell.initialized() and InteractiveShell.instance() is get_ipython()",
    "display": "from IPython.display import display, HTML, Markdown\ndisplay(HTML('<b>x</b>'), Markdown('x'))",
    "clear output": "from IPython.display import clear_output\nprint('x'); clear_output(wait=True)",
    "display that is updated": "handle = display('x', display_id=True)\nhandle.update('y')",
    "javascript": "from IPython.display import Javascript\nJavascript('1')",
    "a widget": "import ipywidgets\nipywidgets.IntSlider()",
    "a widget's output": "import ipywidgets\nwith ipywidgets.Output():\n    print('x')",
    "interact": "from ipywidgets import interact\ninteract(lambda x: x, x=3);",
    "tqdm": "from tqdm.auto import tqdm\nfor _ in tqdm(range(3)):\n    pass",
    "tqdm of the notebook": "from tqdm.notebook import tqdm\nfor _ in tqdm(range(3)):\n    pass",
    "rich": "from rich import print as show\nshow('[b]x[/b]')",
    "pandas' options": "import pandas as pd\npd.set_option('display.max_rows', 5)\npd.DataFrame({'a': [1]})",
    "torch's threads": "import torch\ntorch.set_num_threads(1)\ntorch.manual_seed(0)",
    "torch's printing": "import torch\ntorch.set_printoptions(precision=3)",
    "future annotations": "from __future__ import annotations",
    "an assertion": "assert False, 'on purpose'",
    "an exception": "raise ValueError('on purpose')",
    "sys.exit": "import sys\nsys.exit()",
    "SystemExit": "raise SystemExit(0)",
    "KeyboardInterrupt": "raise KeyboardInterrupt",
    "a syntax error": "def broken(:\n    pass",
    "input": "name = input('name?')",
    "hook for exceptions": "import sys\nsys.excepthook = lambda *a: None",
    "a handler by the shell": "def handler(self, etype, value, tb, tb_offset=None):\n    return None\n"
    "get_ipython().set_custom_exc((ValueError,), handler)",
    "a hook of the shell": "get_ipython().events.register('post_execute', lambda: None)",
    "the next input": "get_ipython().set_next_input('x = 1')",
    "push": "get_ipython().push({'pushed': 1})\nassert pushed == 1",
    "In and Out": "assert isinstance(In, list) and isinstance(Out, dict)",
    "__file__, which a notebook has not": "__file__",
    "__name__": "assert __name__ == '__main__'",
    "a script's guard": "if __name__ == '__main__':\n    print('main')",
    "the signal of an alarm": "import signal\nsignal.signal(signal.SIGALRM, lambda *a: None)",
    "garbage": "import gc\ngc.collect()",
    "a seed": "import random, numpy as np\nrandom.seed(0); np.random.seed(0)",
    "multiprocessing": "import multiprocessing\nassert multiprocessing.current_process().name == 'MainProcess'",
    "a pickle of a lambda": "import pickle\npickle.dumps(lambda: 1)",
    "a type": "from dataclasses import dataclass\n@dataclass\nclass Point:\n    x: int\nPoint(1)",
    "the source of a function": "def f():\n    return 1\nimport inspect\nassert 'return 1' in inspect.getsource(f)",
}
CELL_MAGICS = ("%%time", "%%capture", "%%capture said", "%%prun -q", "%%timeit -n1 -r1", "%%bash\necho hello", "%%html")
AFTER = {
    "quit()": "quit()",
    "exit": "exit",
    "exit()": "exit()",
    "os._exit, in a child": "import os\nif os.fork() == 0:\n    os._exit(0)",
}
ANSWER = "def answer(x):\n    return 2 * x + 1"
CELLS = {
    **{name: f"{prelude}\n{ANSWER}" if prelude else ANSWER for name, prelude in PRELUDES.items()},
    **{magic: f"{magic}\n{ANSWER}" for magic in CELL_MAGICS},
    **{name: f"{ANSWER}\n{after}" for name, after in AFTER.items()},
}
NO_REPLY = "the kernel ended"


@pytest.fixture(scope="module")
def jupyter() -> Iterator[object]:
    """Gives what a real kernel made of a cell; a new kernel after one that ended."""
    from jupyter_client.manager import KernelManager

    manager = KernelManager(kernel_name="python3")
    manager.start_kernel()
    client = manager.blocking_client()
    client.start_channels()
    client.wait_for_ready(timeout=KERNEL_SECONDS)

    def run(source: str) -> str | None:
        reply = client.execute_interactive(
            source, store_history=True, allow_stdin=False, timeout=KERNEL_SECONDS, output_hook=lambda message: None
        )
        return reply["content"].get("ename")

    def both(source: str) -> tuple[str | None, str | None]:
        client.execute_interactive("%reset -f", timeout=KERNEL_SECONDS, output_hook=lambda message: None)
        error = run(source)
        if any(payload in source for payload in AFTER.values()):  # such a kernel ends; what it defined is gone
            time.sleep(0.5)
            if not manager.is_alive():
                manager.restart_kernel(now=True)
                client.wait_for_ready(timeout=KERNEL_SECONDS)
                return None, None
        return error, run("assert answer(20) == 41")

    yield both
    client.stop_channels()
    manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def grading() -> Iterator[object]:
    """Gives what an answer process made of a cell, a fresh one for each."""
    sandbox = sandbox_or_skip(("torch",))
    numbers = count()

    def both(source: str) -> tuple[str | None, str | None]:
        process = sandbox.open()

        def ask(message: dict) -> dict:
            deadline = time.monotonic() + KERNEL_SECONDS
            process.channel.send(message | {"number": next(numbers)}, deadline=deadline)
            return process.channel.receive(deadline)[0]

        ask({"do": "cell", "source": "pass"})  # in Jupyter too this is not the first cell; here nothing needs a reset
        error = ask({"do": "cell", "source": source})["error"]
        after = ask({"do": "cell", "source": "assert answer(20) == 41"})["error"]
        process.stop()
        return error and error[0], after and after[0]

    yield both
    sandbox.close()


# Where grading does more for a learner than Jupyter would, on purpose.
KINDER = {"quit()", "exit", "exit()", "the output's number"}


def test_there_are_sixty_and_more() -> None:
    assert len(CELLS) >= 60


@pytest.mark.parametrize("name", CELLS)
def test_same_as_in_jupyter(name: str, jupyter, grading) -> None:
    with ThreadPoolExecutor(1) as beside:  # each waits for its process: both wait at once
        graded = beside.submit(grading, CELLS[name])
        expected = (None, None) if name in KINDER else jupyter(CELLS[name])
        assert graded.result() == expected
