// Renders the formulas, which arithmatex has marked in the page, with KaTeX.
for (const element of document.querySelectorAll(".arithmatex")) {
  const displayMode = element.tagName === "DIV";
  const source = element.textContent.trim().slice(2, -2);
  katex.render(source, element, { displayMode, throwOnError: false });
}
