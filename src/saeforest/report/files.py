"""The names of the files of a report, for those who look at a report without writing one."""

PAGE, MARKDOWN, VALUES, FIGURES = "report.html", "report.md", "report.json", "figures"
