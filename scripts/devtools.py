"""Drives a headless Chromium by the DevTools protocol over a pair of pipes, for scripts/page-test: no driver and no packages are needed."""

import base64
import json
import os
import select
import subprocess
import time

FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--disable-quic", "--disable-dev-shm-usage", "--hide-scrollbars",
         # Whatever the browser itself would like to ask: only this machine has names.
         "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1", "--remote-debugging-pipe"]
# Name: code of the key, the text that it types.
KEYS = {"Tab": (9, ""), "Enter": (13, "\r")}


class Page:
    """One tab. What it tells of requests, errors and paused requests is in `events`."""

    def __init__(self, program, profile):
        there, self.out = os.pipe()
        self.into, here = os.pipe()
        # The browser reads file 3 and writes file 4; dash knows no files above 9.
        command = ["bash", "-c", f'exec "$@" 3<&{there} 4>&{here}', "bash", program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(command, pass_fds=(there, here), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL)
        os.close(there)
        os.close(here)
        self.rest, self.last, self.session, self.events = b"", 0, None, []
        targets = self.call("Target.getTargets", wait=180)["targetInfos"]
        target = next(target["targetId"] for target in targets if target["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        # Without it a page that is not in front has no focus.
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)

    def call(self, method, wait=30, **parameters):
        self.last += 1
        message = {"id": self.last, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        for answer in self.messages(wait):
            if answer.get("id") == self.last:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
        raise TimeoutError(method)

    def messages(self, wait):
        """What the browser says within so many seconds; events are put aside."""
        end = time.monotonic() + wait
        while (left := end - time.monotonic()) > 0:
            while b"\0" in self.rest:
                message, self.rest = self.rest.split(b"\0", 1)
                message = json.loads(message)
                if "method" in message:
                    self.events.append((message["method"], message["params"]))
                yield message
            if select.select([self.into], [], [], left)[0]:
                piece = os.read(self.into, 1 << 16)
                if not piece:
                    raise RuntimeError("the browser has ended")
                self.rest += piece

    def js(self, expression):
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True, userGesture=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def until(self, expression, wait=60):
        end = time.monotonic() + wait
        while not (value := self.js(expression)):
            if time.monotonic() > end:
                raise TimeoutError(expression)
            time.sleep(0.05)
        return value

    def press(self, key, control=False):
        code, text = KEYS[key] if key in KEYS else (ord(key.upper()), "")
        event = {"key": key, "windowsVirtualKeyCode": code, "modifiers": 2 if control else 0}
        if control and key == "a":
            event["commands"] = ["selectAll"]
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **event)
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def tab_to(self, selector, which=0):
        """Goes on with Tab until the element has the focus, which must be visible."""
        for _ in range(80):
            self.press("Tab")
            if self.js(f"document.activeElement === document.querySelectorAll({json.dumps(selector)})[{which}]"):
                if self.js("getComputedStyle(document.activeElement).outlineStyle") == "none":
                    raise RuntimeError(f"{selector} shows no focus")
                return
        raise RuntimeError(f"Tab does not reach {selector}")

    def screenshot(self, path):
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        picture = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)["data"]
        with open(path, "wb") as file:
            file.write(base64.b64decode(picture))

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.out)
        os.close(self.into)
