"use strict";
// What is wrong with the page as it stands: rule -> problems, each as one line. Evaluated in the page by the tests.
(() => {
  const LEAST_CONTRAST = 4.5, SLACK_PX = 1.5, SLACK_OF_CHART_PX = 4, SMALLEST_PX = 8.5;
  const all = (selector) => [...document.querySelectorAll(selector)];
  const style = (element) => getComputedStyle(element);
  const short = (text) => JSON.stringify(text.trim().replace(/\s+/g, " ").slice(0, 60));
  const tell = (element) => `<${element.localName}${element.id ? "#" + element.id : ""}` +
    `${element.getAttribute("class") ? "." + element.getAttribute("class").replace(/ /g, ".") : ""}> ${short(element.textContent)}`;
  const nameOf = (element) => element.getAttribute("aria-label") ||
    (element.getAttribute("aria-labelledby") || "").split(" ").map((id) => document.getElementById(id)?.textContent || "").join(" ").trim();

  function visibleTexts() {
    const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
      const parent = node.parentElement;
      if (!node.data.trim() || parent.closest("script, style, title")) continue;
      if (!parent.checkVisibility({ visibilityProperty: true })) continue;
      const range = document.createRange();
      range.selectNodeContents(node);
      const boxes = [...range.getClientRects()].filter((box) => box.width > 0 && box.height > 0);
      if (boxes.length) found.push({ node, parent, boxes });
    }
    return found;
  }

  // Red, green and blue from 0 to 255, and alpha, of `rgb(…)` or `color(srgb …)`.
  function parse(color) {
    const numbers = color.match(/-?[\d.]+(e-?\d+)?/g).map(Number);
    const scale = color.startsWith("color(") ? 255 : 1;
    return [...numbers.slice(0, 3).map((value) => value * scale), numbers[3] ?? 1];
  }
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
  // What lies behind an element's text, and how opaque it is itself: from those of its parent.
  function groundOf(element, known) {
    if (!element) return { color: [255, 255, 255, 1], opacity: 1 };
    if (!known.has(element)) {
      const below = groundOf(element.parentElement, known), own = style(element);
      known.set(element, { color: over(parse(own.backgroundColor), below.color), opacity: below.opacity * Number(own.opacity) });
    }
    return known.get(element);
  }
  // Relative luminance and contrast as WCAG 2 defines them.
  function luminance(color) {
    const [r, g, b] = color.slice(0, 3).map((value) => value / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  }
  function contrastOf(element, known) {
    const { color: background, opacity } = groundOf(element, known);
    const color = parse(element.closest("svg") ? style(element).fill : style(element).color);
    color[3] *= opacity;
    const [light, dark] = [luminance(over(color, background)), luminance(background)].sort((a, b) => b - a);
    return (light + 0.05) / (dark + 0.05);
  }

  const scrolls = (element, axis) => ["auto", "scroll"].includes(style(element)[`overflow${axis}`]);
  const scrollersOf = (element, axis) => {
    for (let each = element; each && each !== document.body; each = each.parentElement) if (scrolls(each, axis)) return each;
    return null;
  };
  const scrollers = () => all("body *").filter((element) => element.checkVisibility() &&
    ((scrolls(element, "X") && element.scrollWidth > element.clientWidth + 1) || (scrolls(element, "Y") && element.scrollHeight > element.clientHeight + 1)));

  function tooWide(width) {
    const root = document.documentElement;
    if (root.scrollWidth <= width) return [];
    const outside = all("body *").filter((element) => element.checkVisibility() && element.getBoundingClientRect().right > width + 1 && !scrollersOf(element.parentElement, "X"));
    return [`${root.scrollWidth} px in a window of ${width} px`, ...outside.slice(-5).map(tell)];
  }
  function lowContrast(texts) {
    const known = new Map();
    return texts.map(({ node, parent }) => [contrastOf(parent, known), node, parent]).filter(([contrast]) => contrast < LEAST_CONTRAST - 0.005)
      .map(([contrast, node, parent]) => `${contrast.toFixed(2)}: ${short(node.data)} in ${tell(parent)}`);
  }
  function outsideOfContainer(texts, width) {
    const problems = [], ends = (element) => style(element).textOverflow === "ellipsis" && style(element).overflowX === "hidden";
    for (const { node, parent, boxes } of texts) {
      if (ends(parent)) continue;
      let container = parent;
      while (!parent.closest("svg") && ["inline", "contents"].includes(style(container).display)) container = container.parentElement;
      if (parent.closest("svg")) { container = parent.closest("figure, svg"); }
      const limit = container.getBoundingClientRect(), isFree = scrollersOf(container, "X") !== null;
      const slack = parent.closest("svg") ? SLACK_OF_CHART_PX : SLACK_PX;
      for (const box of boxes) {
        const isIn = box.left >= limit.left - slack && box.right <= limit.right + slack;
        const isInWindow = isFree || (box.left >= -slack && box.right <= width + slack);
        if ((!isIn && scrollersOf(container, "X") !== container) || !isInWindow) {
          problems.push(`${short(node.data)} at ${box.left.toFixed(0)}–${box.right.toFixed(0)} beyond ${limit.left.toFixed(0)}–${limit.right.toFixed(0)} of ${tell(container)}`);
          break;
        }
      }
    }
    return problems;
  }
  function cutOff() {
    const isCut = (element) => ["hidden", "clip"].includes(style(element).overflowX) && element.scrollWidth > element.clientWidth + 1;
    return all("body *:not(svg, svg *)").filter((element) => element.checkVisibility() && element.textContent.trim() && isCut(element) && style(element).textOverflow !== "ellipsis").map(tell);
  }
  function drawnOverEachOther() {
    const problems = [];
    for (const chart of all("svg[role=img]")) {
      const words = [...chart.querySelectorAll("text")].filter((text) => text.checkVisibility({ visibilityProperty: true }) && text.textContent.trim());
      const boxes = words.map((word) => word.getBoundingClientRect());
      for (let i = 0; i < words.length; i++) for (let j = i + 1; j < words.length; j++) {
        const [a, b] = [boxes[i], boxes[j]];
        const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left), high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (wide > 2 && high > 0.35 * Math.min(a.height, b.height)) problems.push(`${short(words[i].textContent)} and ${short(words[j].textContent)} in ${short(chart.getAttribute("aria-label"))}`);
      }
    }
    return problems;
  }
  function tooSmall(texts) {
    const scaleOf = (drawing) => drawing ? drawing.getBoundingClientRect().width / drawing.viewBox.baseVal.width : 1;
    return texts.map(({ node, parent }) => [parseFloat(style(parent).fontSize) * scaleOf(parent.closest("svg[role=img]")), node]).filter(([size]) => size < SMALLEST_PX)
      .map(([size, node]) => `${size.toFixed(1)} px: ${short(node.data)}`);
  }
  function withoutTextAlternative() {
    const hasAny = (element) => element.closest("[aria-hidden=true]") || (element.getAttribute("role") === "img" && nameOf(element));
    return [...all("svg").filter((svg) => !svg.parentElement.closest("svg") && !hasAny(svg)), ...all("[role=img]").filter((element) => !hasAny(element)),
      ...all("img").filter((image) => !image.hasAttribute("alt"))].map(tell);
  }
  function outOfOrder() {
    const levels = all("h1, h2, h3, h4, h5, h6").map((heading) => [Number(heading.localName[1]), heading]);
    const problems = levels.filter(([level], i) => level > (i ? levels[i - 1][0] : 0) + 1).map(([, heading]) => tell(heading));
    const numFirst = levels.filter(([level]) => level === 1).length;
    return numFirst === 1 ? problems : [...problems, `${numFirst} h1`];
  }
  function withoutNames() {
    const problems = [];
    if (!document.documentElement.lang) problems.push("no lang");
    if (!document.title.trim()) problems.push("no title");
    problems.push(...all("button, a[href], summary").filter((element) => !(element.textContent.trim() || nameOf(element))).map(tell));
    problems.push(...all("table").filter((table) => !table.querySelector("th")).map(tell));
    problems.push(...all("thead th").filter((head) => head.checkVisibility() && !(head.textContent.trim() || nameOf(head))).map((head) => `empty head of ${tell(head.closest("table"))}`));
    return problems;
  }
  function unreachable() {
    const isReached = (element) => element.querySelector("button, a[href], summary") || element.tabIndex >= 0 && element.hasAttribute("tabindex") && ["region", "group"].includes(element.getAttribute("role")) && nameOf(element);
    return scrollers().filter((element) => !isReached(element)).map(tell);
  }
  function acting(mark) {
    const handlers = all("*").filter((element) => [...element.attributes].some((attribute) => attribute.name.startsWith("on") || /^\s*javascript:/i.test(attribute.value)));
    return [...handlers.map(tell), ...(window[mark] === undefined ? [] : [`a text was run: ${window[mark]}`])];
  }

  window.findProblems = (width, mark) => {
    const texts = visibleTexts();
    return {
      width: tooWide(width), contrast: lowContrast(texts), inside: outsideOfContainer(texts, width), cut: cutOff(), size: tooSmall(texts), overlap: drawnOverEachOther(),
      alternative: withoutTextAlternative(), headings: outOfOrder(), names: withoutNames(), reach: unreachable(), acts: acting(mark),
    };
  };
  window.findScrollers = scrollers;
})();
