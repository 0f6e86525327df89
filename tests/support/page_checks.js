// What is wrong with the layout of a page, as lines: text and boxes that leave the window or their own box, text that is cut, and
// text of drawings that is outside of them, on other text, or too pale. `tests.support.browser` runs this function in the page.
() => {
  "use strict";
  const SLACK = 1; // pixels, of rounding
  const BOXES = "table, pre, img, svg, figure, input, textarea, button, ul, ol, p, h1, h2, h3";
  const faults = [];
  const say = (fault, element, text) => {
    const kind = element.getAttribute("class");
    faults.push(`${fault}: <${element.localName}${kind ? ` class="${kind}"` : ""}> ${text.trim().slice(0, 60)}`);
  };
  const visible = (element) => element.checkVisibility({ opacityProperty: true, visibilityProperty: true });
  const scrolls = (overflow) => overflow === "auto" || overflow === "scroll";
  const cuts = (overflow) => overflow === "hidden" || overflow === "clip";

  // Check a rectangle of what is in `element` against the boxes around it, from the inside to the window.
  const check = (rect, element, text) => {
    const slack = Math.max(SLACK, rect.height / 4); // a line of text is higher than its letters
    let block = true;
    for (let box = element; box && box !== document.documentElement; box = box.parentElement) {
      const style = getComputedStyle(box);
      if (style.display === "inline" || style.display === "contents") continue;
      const edge = box.getBoundingClientRect();
      // What is for screen readers alone is in a box of a pixel.
      if (edge.width <= 1 && edge.height <= 1) return;
      const across = rect.left < edge.left - SLACK || rect.right > edge.right + SLACK;
      const down = rect.top < edge.top - slack || rect.bottom > edge.bottom + slack;
      if ((across && scrolls(style.overflowX)) || (down && scrolls(style.overflowY))) return;
      const shortened = style.textOverflow === "ellipsis" && box.closest("[title]");
      if (((across && cuts(style.overflowX)) || (down && cuts(style.overflowY))) && !shortened) return say("cut", box, text);
      if (across && cuts(style.overflowX)) return;
      if (block && across && (box.localName === "td" || box.localName === "th")) return say("out of its cell", box, text);
      block = false;
      // A drawer or a dialog that is closed waits outside of the window.
      if (style.position === "fixed" && (rect.right <= 0 || rect.left >= innerWidth)) return;
    }
    if (rect.right > innerWidth + SLACK || rect.left < -SLACK) say("overflow", element, text);
  };

  const root = document.scrollingElement;
  if (root.scrollWidth > innerWidth) faults.push(`overflow: the page is ${root.scrollWidth} px wide in a window of ${innerWidth}`);
  for (const box of document.querySelectorAll(BOXES)) {
    if (visible(box) && box.parentElement && !box.parentElement.closest("svg"))
      check(box.getBoundingClientRect(), box.parentElement, `a ${box.localName}`);
  }
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const node = texts.currentNode, parent = node.parentElement;
    if (!node.data.trim() || parent.closest("svg, script, style, noscript, textarea, select, template") || !visible(parent)) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const rect of range.getClientRects()) if (rect.width > SLACK) check(rect, parent, node.data);
  }

  // Colours, as WCAG 2.2 defines contrast, at least 4.5 for text.
  const parts = (colour) => colour.match(/[\d.]+/g).map(Number);
  const luminance = (rgb) => {
    const [red, green, blue] = rgb.map((value) => value / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const over = (above, share, below) => above.map((value, index) => share * value + (1 - share) * below[index]);
  const background = (element) => {
    if (!element) return [255, 255, 255];
    const [red, green, blue, share = 1] = parts(getComputedStyle(element).backgroundColor);
    return share === 1 ? [red, green, blue] : over([red, green, blue], share, background(element.parentElement));
  };
  for (const drawing of document.querySelectorAll("svg")) {
    if (!visible(drawing)) continue;
    const edge = drawing.getBoundingClientRect(), before = [];
    for (const text of drawing.querySelectorAll("text")) {
      const rect = text.getBoundingClientRect(), words = text.textContent;
      if (!words.trim() || !visible(text)) continue;
      if (rect.left < edge.left - SLACK || rect.right > edge.right + SLACK || rect.top < edge.top - rect.height / 4
        || rect.bottom > edge.bottom + rect.height / 4) say("cut", text, words);
      for (const [other, others] of before) {
        const across = Math.min(rect.right, other.right) - Math.max(rect.left, other.left);
        const down = Math.min(rect.bottom, other.bottom) - Math.max(rect.top, other.top);
        if (across > 2 * SLACK && down > 0.3 * Math.min(rect.height, other.height)) say("on other text", text, `${words} | ${others}`);
      }
      before.push([rect, words]);
      const style = getComputedStyle(text), behind = background(drawing);
      const [red, green, blue, share = 1] = parts(style.fill);
      const levels = [over([red, green, blue], share * style.opacity, behind), behind].map(luminance).sort((a, b) => b - a);
      const contrast = (levels[0] + 0.05) / (levels[1] + 0.05);
      if (contrast < 4.5) say(`contrast ${contrast.toFixed(2)}`, text, words);
    }
  }
  return faults;
}
