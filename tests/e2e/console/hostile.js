// Lists what a value of the store's could have added to the page, and says whether such a value is there as text.
const injected = [];
if (window.hacked) injected.push('a script ran');
for (const element of document.querySelectorAll('img, iframe, object, embed, base, u')) injected.push(element.outerHTML);
for (const script of document.scripts) {
  const own = script.src && new URL(script.src).origin === location.origin;
  if (!own && script.type !== 'application/json') injected.push(script.outerHTML);
}
for (const element of document.querySelectorAll('*')) {
  for (const { name, value } of element.attributes) {
    if (name.startsWith('on')) injected.push(element.outerHTML);
    if (element.matches('a, area, form') && (name === 'href' || name === 'action') && !/^https?:$/.test(new URL(value, location).protocol)) {
      injected.push(element.outerHTML);
    }
  }
}
// Control characters, zero-width signs and those that turn the order of a line, but not line feeds and tabs.
const hidden = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/;
if (hidden.test(document.documentElement.outerHTML)) injected.push('a character that is not seen');
return { injected, shown: document.body.textContent.includes('<img src=x onerror=') };
