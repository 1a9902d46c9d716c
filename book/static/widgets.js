// Jupyter's widgets look for their fonts beside this file, not beside the page.
require.config({ paths: { "@jupyter-widgets/html-manager/dist": new URL("widgets", document.currentScript.src).href } });
// They also ask MathJax 2 to set their formulas; MathJax 4 does it here.
addEventListener("load", () => {
  const set = ([, , element]) => MathJax.startup.promise.then(() => MathJax.typesetPromise([element]));
  MathJax.Hub = { Queue: set };
});
