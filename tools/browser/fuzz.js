// Run on the page by fuzz.py: defines `shows`, which shows replies and returns what they did that they must not.
(async () => {
  window.breaches = [];
  window.breach = () => window.breaches.push("script ran");
  for (const name of ["alert", "confirm", "prompt", "open"]) window[name] = window.breach;
  document.addEventListener("securitypolicyviolation", ({ effectiveDirective: directive, blockedURI: uri }) =>
    window.breaches.push(`the policy stopped ${directive} ${uri}`));
  const { show } = await import("/markdown.js");
  const article = document.createElement("article"), place = document.createElement("div");
  article.className = "reply";
  place.className = "text";
  article.append(place);
  document.getElementById("log").append(article);
  const elements = new Set(("p div span figure figcaption pre code button a h3 h4 h5 h6 ul ol li blockquote table "
    + "thead tbody tr th td em strong s br hr input sub sup kbd u b i del ins mark small math semantics annotation mrow mi "
    + "mn mo ms mtext mspace msub msup msubsup mfrac msqrt mroot munder mover munderover mtable mtr mtd mstyle mpadded "
    + "mphantom menclose merror mlabeledtr svg path line g").split(" "));
  const attributes = new Set(["class", "tabindex", "type", "href", "title", "target", "rel", "start", "disabled",
    "aria-label", "aria-hidden", "style", "xmlns", "encoding", "width", "height", "viewBox", "preserveAspectRatio", "d"]);
  const found = () => {
    for (const node of place.querySelectorAll("*")) {
      const formula = node.closest(".formula") !== null, name = node.localName;
      if (!elements.has(name)) return `an element ${name}`;
      for (const attribute of node.attributes) {
        if (/^on/i.test(attribute.name) || (!formula && !attributes.has(attribute.name))) return `an attribute ${attribute.name}`;
        if (["src", "srcset", "xlink:href", "id", "name"].includes(attribute.name)) return `an attribute ${attribute.name}`;
        if (/url\(|expression|@import/i.test(attribute.value) && attribute.name === "style") return `a style ${attribute.value}`;
      }
      if (node.hasAttribute("href") && (name !== "a" || !/^(https?:\/\/|mailto:)/i.test(node.getAttribute("href"))
        || !["http:", "https:", "mailto:"].includes(node.protocol))) return `an address ${node.getAttribute("href")}`;
    }
    return "";
  };
  show(place, "$x$\n\n```python\n1\n```");
  await new Promise((resolve) => setTimeout(resolve, 500));
  window.shows = async (replies) => {
    const wrong = [];
    for (const [text, cut] of replies) {
      for (const [part, done] of [[text.slice(0, cut), false], [text, true]]) {
        try {
          show(place, part, done);
        } catch (error) {
          wrong.push([String(error.stack), part]);
        }
        const what = found() || window.breaches.splice(0).join(", ");
        if (what) wrong.push([what, part]);
      }
    }
    await new Promise((resolve) => setTimeout(resolve, 0));
    if (window.breaches.length) wrong.push([window.breaches.splice(0).join(", "), "one of the replies of this batch"]);
    return wrong;
  };
})()
