// Names for a screen reader, which the theme and the saved widgets lack.
const named = () => {
  const misnamed = ".search-button-field[aria-label], summary[aria-label]"; // their own words say more
  for (const element of document.querySelectorAll(misnamed)) element.removeAttribute("aria-label");
  for (const handle of document.querySelectorAll(".noUi-handle:not([aria-label])")) {
    const label = handle.closest(".jupyter-widgets.widget-inline-hbox")?.querySelector(".widget-label");
    handle.setAttribute("aria-label", label?.textContent || "value");
  }
  for (const picture of document.querySelectorAll("img.widget-image:not([alt])")) {
    const words = picture.closest(".widget-vbox")?.querySelector(".widget-html-content");
    picture.alt = words?.textContent || "The picture of the panel, described in the text.";
  }
};
addEventListener("DOMContentLoaded", () => {
  named();
  new MutationObserver(named).observe(document.body, { childList: true, subtree: true });
});
