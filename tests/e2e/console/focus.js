// The element that has the focus, if nothing shows that it has it.
const element = document.activeElement;
if (!element || element === document.body || element === document.documentElement) return null;
const style = getComputedStyle(element);
const isOutlined = style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) > 0;
return isOutlined || style.boxShadow !== 'none' ? null : `no focus is seen on ${element.outerHTML.slice(0, 120)}`;
