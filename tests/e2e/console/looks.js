// Lists what is wrong with the page at this width: what is cut off, can't be read, or has no name or place for a screen reader.
const faults = [];

// The colors of the page, as red, green, blue and opacity. A canvas knows every notation.
const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
const known = new Map();
function parseColor(text) {
  if (!known.has(text)) {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = text;
    canvas.fillRect(0, 0, 1, 1);
    const [red, green, blue, alpha] = canvas.getImageData(0, 0, 1, 1).data;
    known.set(text, [red, green, blue, alpha / 255]);
  }
  return known.get(text);
}
function cover(below, [red, green, blue, alpha]) {
  return [red, green, blue].map((value, index) => value * alpha + below[index] * (1 - alpha));
}
function luminance(color) {
  const [red, green, blue] = color.map(value => {
    const share = value / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}
// The color of an empty page follows the color scheme.
const probe = document.body.appendChild(document.createElement('i'));
probe.style.color = 'Canvas';
const paper = parseColor(getComputedStyle(probe).color);
probe.remove();
function background(element) {
  const above = [];
  for (let it = element; it; it = it.parentElement) above.unshift(parseColor(getComputedStyle(it).backgroundColor));
  return above.reduce(cover, paper.slice(0, 3));
}
function opacity(element) {
  let product = 1;
  for (let it = element; it; it = it.parentElement) product *= parseFloat(getComputedStyle(it).opacity);
  return product;
}
function contrast(element, color) {
  const below = background(element);
  const [red, green, blue, alpha] = parseColor(color);
  const lights = [luminance(cover(below, [red, green, blue, alpha * opacity(element)])), luminance(below)];
  return (Math.max(...lights) + 0.05) / (Math.min(...lights) + 0.05);
}
// WCAG 2.2, 1.4.3 asks for 4.5.
function judge(element, color, words) {
  const ratio = contrast(element, color);
  if (ratio < 4.5) faults.push(`contrast ${ratio.toFixed(2)} of "${words.trim().slice(0, 40)}" (${element.tagName}.${element.className})`);
}
const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (texts.nextNode()) {
  const element = texts.currentNode.parentElement;
  const box = element.getBoundingClientRect();
  const isSeen = element.checkVisibility({ visibilityProperty: true }) && box.width > 1 && box.height > 1;
  if (!isSeen || !texts.currentNode.data.trim() || element.closest('script, style, title, option, [aria-hidden=true]')) continue;
  const style = getComputedStyle(element);
  judge(element, element instanceof SVGElement ? style.fill : style.color, texts.currentNode.data);
}
for (const field of document.querySelectorAll('input:not([type=checkbox], [type=hidden]), select, textarea')) {
  judge(field, getComputedStyle(field).color, field.name || field.tagName);
  if (field.placeholder) judge(field, getComputedStyle(field, '::placeholder').color, field.placeholder);
}

const scrolled = document.scrollingElement.scrollWidth;
if (scrolled > WIDTH) {
  const wide = [...document.body.querySelectorAll('*')].find(it => it.getBoundingClientRect().right > WIDTH + 1 && !it.children.length);
  faults.push(`the page is wider than the screen: ${scrolled} px, by ${wide?.outerHTML.slice(0, 160)}`);
}

// On a phone each cell stands for itself. A row of a table is as high as its highest cell.
for (const cell of WIDTH < 700 ? document.querySelectorAll('td') : []) {
  const content = document.createRange();
  content.selectNodeContents(cell);
  const empty = cell.getBoundingClientRect().height - content.getBoundingClientRect().height;
  if (empty > 80) faults.push(`${Math.round(empty)} empty px in the cell "${cell.textContent.trim().slice(0, 40)}"`);
}

if (!document.documentElement.lang) faults.push('no lang');
if (!document.title) faults.push('no title');
for (const landmark of ['main', 'header', 'nav', 'h1']) {
  const count = [...document.querySelectorAll(landmark)].filter(it => landmark !== 'header' || !it.closest('main, section, article')).length;
  if (landmark === 'nav' ? count < 1 : count !== 1) faults.push(`${count} of ${landmark}`);
}
let level = 0;
for (const heading of document.querySelectorAll('h1, h2, h3, h4')) {
  const next = Number(heading.tagName[1]);
  if (next > level + 1) faults.push(`the heading "${heading.textContent.slice(0, 40)}" skips a level`);
  level = next;
}
const ids = [...document.querySelectorAll('[id]')].map(it => it.id);
for (const id of new Set(ids.filter((id, index) => ids.indexOf(id) !== index))) faults.push(`the id ${id} is there twice`);
for (const table of document.querySelectorAll('table')) {
  if (!table.caption && !table.matches('[aria-label], [aria-labelledby]')) faults.push(`the table ${table.id} has no caption`);
  if (!table.querySelector('th')) faults.push(`the table ${table.id} has no header`);
  for (const cell of table.querySelectorAll('th:not([scope])')) faults.push(`a header without a scope: ${cell.textContent}`);
}
for (const field of document.querySelectorAll('input:not([type=hidden]), select, textarea')) {
  if (!field.labels.length && !field.matches('[aria-label], [aria-labelledby]')) faults.push(`no label: ${field.outerHTML}`);
}
for (const element of document.querySelectorAll('[tabindex]')) {
  if (element.tabIndex > 0) faults.push(`an order of its own: ${element.outerHTML.slice(0, 80)}`);
}
return faults;
