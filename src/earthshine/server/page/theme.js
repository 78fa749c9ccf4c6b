// The chosen theme, before anything is drawn; a classic script, because modules run later. settings.js changes it.
try {
  const { theme } = JSON.parse(localStorage.getItem("earthshine.settings") ?? "{}");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Storage is blocked or holds something else: the system's theme.
}
