// Renews the list when a mail has come or gone. The open mail is left as it is.
const list = document.getElementById('list')

async function renew() {
  if (document.hidden) return
  const head = await fetch('/api/messages', {method: 'HEAD', cache: 'no-store'})
  if (!head.ok || head.headers.get('ETag') === list.dataset.version) return
  const page = await fetch(location.href, {cache: 'no-store'})
  const next = new DOMParser().parseFromString(await page.text(), 'text/html')
  const focused = document.activeElement?.id
  replace('#list', next)
  if (location.pathname === '/') replace('main', next) // no mail there, but a hint
  list.dataset.version = next.getElementById('list').dataset.version
  if (focused) document.getElementById(focused)?.focus({preventScroll: true})
}

function replace(selector, next) {
  document.querySelector(selector).replaceChildren(...next.querySelector(selector).childNodes)
}

setInterval(() => renew().catch(() => {}), 1500) // the server may be restarting
