// Looks at the page that is open and returns, as JSON, its title, its text and what is
// wrong with it: what sticks out of the window, text that can't be read against
// what is behind it (WCAG 2.2 AA, 1.4.3), and links and controls without a name.
(() => {
  const findings = [];
  const where = (e) => {
    const text = (e.textContent || '').trim().replace(/\s+/g, ' ').slice(0, 40);
    return `<${e.tagName.toLowerCase()} class="${e.getAttribute('class') || ''}"> ${JSON.stringify(text)}`;
  };

  // What is wider than the window.
  const width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth > width) {
    findings.push(`the page is ${document.documentElement.scrollWidth} px wide, the window ${width} px`);
  }
  const hidden = (e) => ['.vh, .skip, .defs', 'thead', 'th'].some((s) => e.closest(s) && getComputedStyle(e.closest(s)).clipPath !== 'none' || e.closest('.skip, .defs'));
  for (const e of document.querySelectorAll('body *')) {
    const box = e.getBoundingClientRect();
    if (box.width > 0 && !hidden(e) && (box.right > width + 1 || box.left < -1)) {
      findings.push(`${where(e)} reaches from ${box.left} to ${box.right} px, the window to ${width} px`);
    }
  }

  // What is wider than the box that it belongs to.
  for (const box of document.querySelectorAll('.card, .health')) {
    const right = box.getBoundingClientRect().right - parseFloat(getComputedStyle(box).paddingRight);
    for (const e of box.querySelectorAll('*')) {
      const at = e.getBoundingClientRect();
      if (at.width > 0 && !hidden(e) && !e.closest('svg') && at.right > right + 1) findings.push(`${where(e)} sticks out of its box by ${at.right - right} px`);
    }
  }

  // Colours as red, green, blue and alpha, from 0 to 1.
  const colour = (text) => {
    const n = (text.match(/-?[\d.]+(e-?\d+)?/g) || []).map(Number);
    if (text.startsWith('rgb')) return [n[0] / 255, n[1] / 255, n[2] / 255, n[3] ?? 1];
    if (text.startsWith('color(srgb')) return [n[0], n[1], n[2], n[3] ?? 1];
    return null;
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
  const background = (e) => {
    const layers = [];
    for (let at = e; at; at = at.parentElement) {
      const c = colour(getComputedStyle(at).backgroundColor);
      if (!c) { findings.push(`${where(at)} has a background that cannot be read: ${getComputedStyle(at).backgroundColor}`); return null; }
      layers.push(c);
      if (c[3] === 1) break;
    }
    return layers.reverse().reduce((below, top) => over(top, below), [1, 1, 1, 1]);
  };
  const luminance = (c) => {
    const [r, g, b] = c.slice(0, 3).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (a, b) => {
    const [x, y] = [luminance(a), luminance(b)].sort((p, q) => q - p);
    return (x + 0.05) / (y + 0.05);
  };

  let compared = 0;
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const e = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || hidden(e) || e.closest('title, desc, style')) continue;
    if (e.getClientRects().length === 0) continue; // folded away
    const style = getComputedStyle(e);
    const front = colour(e instanceof SVGElement ? style.fill : style.color);
    const back = background(e);
    if (!front || !back) { findings.push(`${where(e)} has a colour that cannot be read: ${style.color}`); continue; }
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    const ratio = contrast(over(front, back), back);
    compared++;
    if (ratio < (large ? 3 : 4.5)) findings.push(`${where(e)} has a contrast of ${ratio.toFixed(2)}`);
    if (!(e instanceof SVGElement) && size < 11 && !matchMedia('print').matches) findings.push(`${where(e)} is ${size} px high`);
  }

  // Lines, bars and shapes (1.4.11) need less.
  for (const e of document.querySelectorAll('.plot .line, .strip rect, .fill, .glyph, .big')) {
    if (e.getClientRects().length === 0) continue;
    const style = getComputedStyle(e);
    const front = colour(e.matches('rect') ? style.fill : style.color);
    const back = background(e.closest('svg').parentElement);
    const ratio = front && back ? contrast(over(front, back), back) : 0;
    compared++;
    if (ratio < 3) findings.push(`${where(e)} has a contrast of ${ratio.toFixed(2)}`);
  }

  for (const e of document.querySelectorAll('a, summary, [role=img]')) {
    const name = e.getAttribute('aria-labelledby')
      ? e.getAttribute('aria-labelledby').split(' ').map((id) => document.getElementById(id)?.textContent || '').join('')
      : e.textContent;
    if (!name.trim()) findings.push(`${where(e)} has no name`);
  }
  return JSON.stringify({ Title: document.title, Text: document.body.innerText, Findings: findings, Compared: compared });
})()
