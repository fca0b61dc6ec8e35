"""How the pages' events travel."""

from collections.abc import Mapping
from typing import Any, Final

# Handlers that answer at once go straight through, not through the queue: an event that joins the queue while the
# stream of the one before it is being closed waits until a third event comes.
SHORT: Final[Mapping[str, Any]] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}

# A stream goes through the queue, as many at a time as there are people.
STREAMED: Final[Mapping[str, Any]] = {
    "show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None, "trigger_mode": "once",
}  # fmt: skip

# Far above every setting for a message's length, so that the server's sentence names the limit; far below the limit on
# a request's body, which the framework can only tell as an error of its own.
MAX_TYPED: Final = 200_000

REMEMBER_JS = "(id) => { history.replaceState(null, '', id ? '?c=' + id : location.pathname); }"
# On a phone the list covers the page: it is closed at the start and once a conversation is chosen.
CLOSE_SIDEBAR_JS = """() => {
  if (window.innerWidth < 768) document.querySelector('#sidebar.open .toggle-button')?.click();
}"""
LEAVE_JS = "(shown) => [shown, '']"
# What is typed and not sent yet outlives a reload, which the framework does by itself once the app was restarted. It
# stays in this tab; a browser that may keep nothing keeps nothing. The framework tells when it empties the box; what a
# person types is heard from the box itself, since the framework tells nothing more once a stream of its broke off.
KEEP_DRAFT_JS = "(text) => { try { sessionStorage.setItem('draft', text); } catch {} }"
HEAR_TYPING_JS = f"""() => {{
  document.addEventListener('input', (event) => {{
    if (event.target.matches('#message textarea')) ({KEEP_DRAFT_JS})(event.target.value);
  }});
}}"""
DRAFT_BACK_JS = """() => {
  const box = document.querySelector('#message textarea');
  let draft = '';
  try { draft = sessionStorage.getItem('draft'); } catch {}
  if (!box || box.value || !draft) return;
  box.value = draft;
  box.dispatchEvent(new Event('input', {bubbles: true}));
}"""
ASKED_JS = f"""() => {{
  ({CLOSE_SIDEBAR_JS})();
  ({DRAFT_BACK_JS})();
  ({HEAR_TYPING_JS})();
  return new URLSearchParams(location.search).get('c') || '';
}}"""
