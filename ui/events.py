"""How the pages' events travel."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final

import gradio as gr
from anyio import CapacityLimiter
from anyio.to_thread import run_sync

# Nothing shows progress: at every update of a stream the framework tells all components that ever were to show some,
# and looks for each of them in the whole page, which was an eighth of a browser's work.
QUIET: Final[Mapping[str, Any]] = {"show_progress": "hidden", "show_progress_on": [], "api_visibility": "private"}

# Handlers that answer at once go straight through, not through the queue: an event that joins the queue while the
# stream of the one before it is being closed waits until a third event comes.
SHORT: Final[Mapping[str, Any]] = {**QUIET, "queue": False}

# A stream goes through the queue, as many at a time as there are people.
STREAMED: Final[Mapping[str, Any]] = {**QUIET, "concurrency_limit": None, "trigger_mode": "once"}

# Far above every setting for a message's length, so that the server's sentence names the limit; far below the limit on
# a request's body, which the framework can only tell as an error of its own.
MAX_TYPED: Final = 200_000
SHORT_THREADS: Final = 16

REMEMBER_JS = "(id) => { history.replaceState(null, '', id ? '?c=' + id : location.pathname); }"
# On a phone the list covers the page: it is closed at the start and once a conversation is chosen.
CLOSE_SIDEBAR_JS = """() => {
  if (window.innerWidth < 768) document.querySelector('#sidebar.open .toggle-button')?.click();
}"""
LEAVE_JS = "(shown) => [shown, '']"
# What is typed and not sent yet outlives a reload, which the framework does by itself once the app was restarted. It
# stays in this tab, for whoever wrote it: in the tab of somebody who logged out, the next person must not find it. A
# browser that may keep nothing keeps nothing. The framework tells when it empties the box; what a person types is heard
# from the box itself, since the framework tells nothing more once a stream of its broke off.
KEEP_DRAFT_JS = """(text, who) => {
  if (!who) return;
  try { sessionStorage.setItem('draft', text); sessionStorage.setItem('drafter', who); } catch {}
}"""
HEAR_TYPING_JS = f"""(who) => {{
  document.addEventListener('input', (event) => {{
    if (event.target.matches('#message textarea')) ({KEEP_DRAFT_JS})(event.target.value, who);
  }});
}}"""
# What is in the box already was typed before the page knew for whom it is filled.
DRAFT_BACK_JS = f"""(who) => {{
  const box = document.querySelector('#message textarea');
  if (!box) return;
  if (box.value) return ({KEEP_DRAFT_JS})(box.value, who);
  let draft = '';
  try {{
    if (sessionStorage.getItem('drafter') === who) draft = sessionStorage.getItem('draft');
    else sessionStorage.removeItem('draft');
  }} catch {{}}
  if (!draft) return;
  box.value = draft;
  box.dispatchEvent(new Event('input', {{bubbles: true}}));
}}"""
FILLED_JS = f"(who) => {{ ({DRAFT_BACK_JS})(who); ({HEAR_TYPING_JS})(who); window.pageIsFilled(); }}"
# What fills the page comes from the server, and would undo what an Enter or a button filled before it. So the last of
# them is kept, and done once the page is filled.
HOLD_JS = """() => {
  let again = () => {};
  const hold = (event) => {
    const {target} = event;
    const does = event.type === 'click' ? target.closest('#pages button:not([role=tab]), #new-conversation')
      : event.key === 'Enter' && !event.shiftKey;
    if (!does || !event.isTrusted) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    again = () => target.dispatchEvent(new event.constructor(event.type, event));
  };
  const kinds = ['click', 'keypress'];
  kinds.forEach((kind) => document.addEventListener(kind, hold, true));
  window.pageIsFilled = () => {
    kinds.forEach((kind) => document.removeEventListener(kind, hold, true));
    again();
  };
}"""
# The framework says of an event that was refused only "Error", and leaves what was said of the one before. So what it
# asks for is watched: the guard's sentence stands over the page until the person does something else.
REFUSED_JS = """() => {
  if (document.getElementById('refused')) return;
  const box = document.body.appendChild(document.createElement('div'));
  Object.assign(box, {id: 'refused', hidden: true});
  box.setAttribute('role', 'alert');
  const show = (sentence) => {
    box.textContent = sentence;
    box.hidden = !sentence;
    document.body.classList.toggle('refused', Boolean(sentence));
  };
  const ask = window.fetch;
  window.fetch = async (...asked) => {
    const answer = await ask(...asked);
    const path = new URL(asked[0].url ?? asked[0], location.href).pathname;
    const unqueued = path.includes('/gradio_api/run/');
    if (answer.ok && (unqueued || path.endsWith('/queue/join'))) show('');
    if (!answer.ok && unqueued) show((await answer.clone().json().catch(() => ({}))).detail ?? answer.statusText);
    return answer;
  };
}"""
ASKED_JS = f"""() => {{
  ({HOLD_JS})();
  ({REFUSED_JS})();
  ({CLOSE_SIDEBAR_JS})();
  return new URLSearchParams(location.search).get('c') || '';
}}"""


def keep_threads_free(page: gr.Blocks) -> None:
    """Give the page's short handlers threads of their own number.

    The framework runs them in the same forty threads in which it reads what every event brings: so many votes that
    wait for a busy database would keep everybody else's questions and pages waiting too.
    """
    limiter = CapacityLimiter(SHORT_THREADS)
    for event in page.fns.values():
        if event.fn and not inspect.iscoroutinefunction(event.fn) and not inspect.isasyncgenfunction(event.fn):
            event.fn = _in_threads(event.fn, limiter)


def _in_threads(handler: Callable[..., Any], limiter: CapacityLimiter) -> Callable[..., Any]:
    @functools.wraps(handler)  # by whose parameters the framework knows that a handler wants the request
    async def run(*values: Any) -> Any:
        return await run_sync(handler, *values, limiter=limiter)

    return run
