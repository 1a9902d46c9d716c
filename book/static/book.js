// The theme names these for a screen reader; their own words say more. Panels are named by the lessons' first cell.
addEventListener("DOMContentLoaded", () => {
  const misnamed = ".search-button-field[aria-label], summary[aria-label]";
  for (const element of document.querySelectorAll(misnamed)) element.removeAttribute("aria-label");
});
